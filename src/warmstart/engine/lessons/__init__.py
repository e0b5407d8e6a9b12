"""What is learned beside the targets: from teachers, and from the start model."""
