"""The only place where the conventions of other libraries are converted to ours."""
