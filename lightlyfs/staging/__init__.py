"""New and changed files on their way to the server: staged on disk, owed in a journal, uploaded."""
