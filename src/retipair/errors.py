"""What a user did that cannot work: said in one line, with the file or flag and the remedy."""


class UserError(ValueError):
    """Bad input. The command line prints the message alone and ends with status 2."""
