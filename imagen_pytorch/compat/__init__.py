"""What exists only for code that was written for earlier versions and for lucidrains' package."""
