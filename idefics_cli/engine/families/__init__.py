"""What each kind of checkpoint knows without torch: its images, its prompts, its tokens. Page processes use it too."""
