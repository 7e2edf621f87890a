// The redirect URI. The first script of its page: code and state leave the address, and the history, before all else.
"use strict";
const callbackUrl = location.href;
history.replaceState(null, "", location.pathname);

import("./api.js").then(async ({ call, setNotice }) => {
  try {
    await call("POST", "/spotify/callback", { url: callbackUrl });
    setNotice("Connected.");
  } catch (error) {
    setNotice(error.message);
  }
  location.replace("./");
});
