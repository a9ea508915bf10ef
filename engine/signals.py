"""SIGTERM and SIGINT wait until what is under way has ended and is saved; then the process leaves, with 143 or 130."""
import signal

from engine.ranks import all_sum, say, world_size


class Signals:
    """What asked this process to end, from catch() until release()."""

    def __init__(self):
        self.noted = 0                                   # the number of the signal, 0 for none
        self.before: dict = {}                           # signal -> what handled it before

    def catch(self) -> "Signals":
        for number in (signal.SIGTERM, signal.SIGINT):
            handler = signal.getsignal(number)
            if handler == signal.SIG_IGN:                # as nohup and `… &` in a script have it
                continue
            earlier = getattr(handler, "__self__", None)         # of a run in this process that did not come to its end
            self.before[number] = earlier.before[number] if isinstance(earlier, Signals) else handler
            signal.signal(number, self.note)
        return self

    def note(self, number, frame) -> None:
        self.noted = number
        if world_size() == 1:                            # a second one ends the run at once; torchrun may pass on what
            signal.signal(number, self.before[number])   # the rank has had from the terminal already

    def release(self) -> None:
        while self.before:
            signal.signal(*self.before.popitem())

    def asked(self, together: bool = True) -> int:
        """The signal that asked any rank to end, the same on all ranks; not together: this one."""
        if not together:
            return self.noted
        terminate, interrupt = all_sum(self.noted == signal.SIGTERM, self.noted == signal.SIGINT)
        return signal.SIGTERM if terminate else signal.SIGINT if interrupt else 0

    def leave_if_asked(self, done: str, together: bool = True) -> None:
        """End the process where a signal asked for it.  done: what has just ended, for the message."""
        if number := self.asked(together):
            say(f"{done}, then stopped by {signal.Signals(number).name}; the same command goes on from there "
                "(without --overwrite)")
            raise SystemExit(128 + number)
