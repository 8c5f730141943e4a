"""Files and folders, as robust as disks are not: whole files or none, retries, archives, locks."""
