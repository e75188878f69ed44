from savevm.cli import run

run()
