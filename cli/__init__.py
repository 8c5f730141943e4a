"""The command lines `cocolvis` and `ess`: parsing, messages and exit codes; the work is done by the packages they name."""
