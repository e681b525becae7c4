"""A saga that provisions a virtual machine, its action server, and the inventory in which its effects are."""
