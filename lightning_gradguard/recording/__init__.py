"""What a record tells of a step, and of those since the last one."""
