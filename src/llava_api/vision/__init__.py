"""What is known of each LLaVA family: how it sees images, and what it is called in every place that names it."""
