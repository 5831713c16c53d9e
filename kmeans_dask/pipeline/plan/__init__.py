"""What a job will take, worked out before it starts: tasks, memory, time and disk."""
