"""What a cohort tells without labels: clusters, outliers, nearest and duplicate tiles."""
