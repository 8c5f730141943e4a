"""The pages: which address shows what, and the templates, scripts and styles with which a browser shows it."""
