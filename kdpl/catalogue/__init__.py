"""The CLIPs that can be teacher or student, their sizes and licences: `models`."""
