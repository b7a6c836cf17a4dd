"""What comes back about rollouts: verdicts, rewards and demonstrations."""
