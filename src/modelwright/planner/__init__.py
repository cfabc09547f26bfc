"""What a model costs, by arithmetic on its config: nothing is built, read or downloaded, and no tensor code runs."""
