// The drawing pad: black ink on white paper, by mouse, pen or finger. After each stroke the page is given the picture.
const pad = element.querySelector("canvas");
const pen = pad.getContext("2d");
let last = null;

function clear() {
  pen.fillStyle = "white";
  pen.fillRect(0, 0, pad.width, pad.height);
}

function place(event) {
  const box = pad.getBoundingClientRect();
  return [(event.clientX - box.left) * pad.width / box.width, (event.clientY - box.top) * pad.height / box.height];
}

function draw(event) {
  const next = place(event);
  Object.assign(pen, { lineWidth: 22, lineCap: "round", lineJoin: "round", strokeStyle: "black" });
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...next);
  pen.stroke();
  last = next;
}

pad.addEventListener("pointerdown", (event) => {
  pad.setPointerCapture(event.pointerId);
  last = place(event);
  draw(event);
});
pad.addEventListener("pointermove", (event) => {
  if (last) draw(event);
});
for (const end of ["pointerup", "pointercancel"]) {
  pad.addEventListener(end, () => {
    if (last) trigger("input", { picture: pad.toDataURL("image/png") });
    last = null;
  });
}
element.querySelector("button").addEventListener("click", clear);
clear();
