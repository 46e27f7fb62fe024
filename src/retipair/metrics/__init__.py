"""What pairs are worth: pure functions of images, each with a known answer on images made for it."""
