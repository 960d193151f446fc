"""`ravebot logs`: the console, QEMU's log and the output of set-up and tests of one merge request's sandbox."""
