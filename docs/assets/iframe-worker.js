// Browsers start no worker on a page that was opened from a file. The search has one: here it
// runs in a hidden frame instead, which shares the page's origin.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = "<!doctype html><body></body>"
      this.ready = new Promise((resolve, reject) => {
        frame.addEventListener("load", () => {
          const inside = frame.contentWindow
          inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
          const script = inside.document.createElement("script")
          script.addEventListener("load", () => resolve(inside))
          script.addEventListener("error", reject)
          script.src = new URL(url, location.href).href
          inside.document.body.append(script)
        }, { once: true })
      })
      document.body.append(frame)
      this.frame = frame
    }

    postMessage(data) {
      this.ready.then(inside => inside.dispatchEvent(new inside.MessageEvent("message", { data })))
    }

    terminate() {
      this.frame.remove()
    }
  }
}
