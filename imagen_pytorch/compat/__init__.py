"""Functions and classes that exist only for code written for earlier versions and for lucidrains' package."""
