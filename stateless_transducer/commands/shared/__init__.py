"""What several commands share: flags, console, checks of options, sound and text files."""
