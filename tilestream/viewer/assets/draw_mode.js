// One gesture at a time: moving, a line by hand, or corners; erasing leaves moving on.
lasso.active = cb_obj.active == 1
corners.active = cb_obj.active == 2
pan.active = cb_obj.active == 0 || cb_obj.active == 3
