// Stands for the widget model of a notebook: it hands changes to Python, and takes those that Python makes.
window.fdModels = {};
class Model {
  constructor(id, state) {
    Object.assign(this, { id, state, waiting: {}, listeners: {} });
    this.widget_manager = { get_model: async (other) => window.fdModels[other] };
    window.fdModels[id] = this;
  }
  get(name) { return this.state[name]; }
  set(name, value) {
    this.waiting[name] = value;
    this.receive({ [name]: value });
  }
  save_changes() {
    const changed = this.waiting;
    this.waiting = {};
    if (!window.fdIsDead) window.fdTell(this.id, "update", changed);
  }
  send(content) { if (!window.fdIsDead) window.fdTell(this.id, "message", content); }
  on(events, act) { for (const event of events.split(" ")) (this.listeners[event] ??= []).push(act); }
  off(events, act) { for (const event of events.split(" ")) this.listeners[event] = (this.listeners[event] ?? []).filter((one) => one !== act); }
  fire(event) { for (const act of [...(this.listeners[event] ?? [])]) act(); }
  receive(state) {
    const other = Object.keys(state).filter((name) => JSON.stringify(this.state[name]) !== JSON.stringify(state[name]));
    Object.assign(this.state, state);
    other.forEach((name) => this.fire(`change:${name}`));
  }
}
window.fdShow = async (id, state, code, host) => {
  const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
  const el = document.createElement("div");
  document.querySelector(host).append(el);
  const module = await import(address);
  module.default.render({ model: new Model(id, state), el });
};
window.fdReceive = (news) => {
  for (const [id, state] of news.models) new Model(id, state);
  for (const [id, state] of news.states) window.fdModels[id].receive(state);
};
window.fdFetch = async () => window.fdReceive(await window.fdPull());
(async () => {
  for (;;) {
    if (!window.fdIsDead) await window.fdFetch(); // Python may be long in answering
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
})();
