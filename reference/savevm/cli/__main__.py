from savevm.cli import main

main()
