"""What can be seen, checked and taken out of a data set that is built."""
