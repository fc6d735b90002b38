"""The arithmetic of the core, quicker: one trick a module, each tested equal to the plain one."""
