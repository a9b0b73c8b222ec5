"""The base of all errors that are a sentence for people; anything else that is raised is a fault of the program."""


class ZfdistError(Exception):
    """What was refused, or has failed: the message names the flag, field, file or machine, and the remedy.

    A command prints the message alone; a run that raises one is not launched again, as it would end the same way.
    """
