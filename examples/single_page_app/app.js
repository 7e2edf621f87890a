// The profile page.
import { call, isSignedIn, setNotice, signIn, signOut, takeNotice } from "./api.js";

const element = (id) => document.getElementById(id);

async function show() {
  if (!isSignedIn()) return;
  const status = await call("GET", "/spotify/connection");
  const works = status.connected && !status.reauthorization;
  element("state").textContent = works ? "Connected" : status.connected ? "Connect again" : "Not connected";
  element("account").textContent = status.display_name ?? status.spotify_user_id ?? "none";
  element("connect").textContent = status.connected ? "Reconnect" : "Connect Spotify";
  element("disconnect").hidden = !status.connected;
  const playing = works ? (await call("GET", "/now-playing")).title : null;
  element("playing").textContent = playing ?? "nothing";
}

const actions = {
  "sign-in": async () => signIn(element("sign-in").email.value, element("sign-in").password.value),
  "sign-out": async () => signOut(),
  connect: async () => {
    // Spotify asks again then, so that another account can be chosen.
    const isReconnect = element("connect").textContent === "Reconnect";
    const { url } = await call("POST", "/spotify/connect", { show_dialog: isReconnect });
    location.assign(url);
  },
  disconnect: async () => {
    await call("DELETE", "/spotify/connection");
    setNotice("Disconnected.");
  },
};

async function attempt(action) {
  try {
    await action();
    await show();
  } catch (error) {
    setNotice(error.message);
  }
  element("notice").textContent = takeNotice() ?? "";
  element("sign-in").hidden = isSignedIn();
  element("profile").hidden = !isSignedIn();
}

for (const [id, action] of Object.entries(actions)) {
  element(id).addEventListener(id === "sign-in" ? "submit" : "click", (event) => {
    event.preventDefault();
    attempt(action);
  });
}
attempt(async () => {});
