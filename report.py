def write_run_page(out):
    pass
