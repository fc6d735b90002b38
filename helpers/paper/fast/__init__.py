"""The arithmetic of the paper, quicker: one trick a module, each tested equal to the plain one."""
