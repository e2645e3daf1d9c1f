"""What is done, where and when: plan, memory, recipe, tasks, executors, driver."""
