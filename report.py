def write_run_page(out):
    pass


def write_table_page(out):
    pass
