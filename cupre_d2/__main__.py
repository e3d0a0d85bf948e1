"""`python -m cupre_d2 COMMAND ...`, where no script lies on the path."""

from cupre_d2_cli import main

if __name__ == "__main__":
    main()
