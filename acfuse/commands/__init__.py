"""The commands, a module for each subject: click. Heavy modules are imported when one runs."""
