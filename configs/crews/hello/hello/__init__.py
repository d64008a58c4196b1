"""The smallest crew's tools."""
