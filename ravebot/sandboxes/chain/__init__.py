"""From a claimed machine to an announced sandbox: the stages, the jobs in the guest, and where the code comes from."""
