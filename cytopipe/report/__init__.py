"""Pages and pictures: self-contained HTML without any network, overviews, contact sheets, outlines on images."""
