"""The one exception that a user sees."""


class UserError(Exception):
  """Something the user can correct: a path, a file, a flag, a config field.

  The message says what was found, where, what was expected and what to do.
  Entry points print it in one line and leave with status 2, without a stack
  trace.
  """
