"""What runs machines. `base` is the contract; each folder beside it is one provider. Only `app` picks one."""
