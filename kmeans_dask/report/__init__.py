"""The report: the page in one HTML file, its images and its figures."""
