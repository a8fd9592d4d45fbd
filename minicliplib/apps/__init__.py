"""What a user starts: the command line, and the web page of the demo."""
