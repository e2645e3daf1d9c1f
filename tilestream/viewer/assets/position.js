const um = `y ${(-cb_obj.y * mpp).toFixed(1)} µm, x ${(cb_obj.x * mpp).toFixed(1)} µm`;
box.text = `y ${Math.floor(-cb_obj.y)} px, x ${Math.floor(cb_obj.x)} px &ensp; ` + (mpp > 0 ? um : "no resolution known");
