// Requests to the service, with the access token of Supabase as their bearer token.
import { API, SUPABASE } from "./config.js";

const TOKEN = "access_token"; // of this tab alone; supabase-js has a place of its own for it

export const isSignedIn = () => sessionStorage.getItem(TOKEN) !== null;
export const signOut = () => sessionStorage.removeItem(TOKEN);

// supabase-js: supabase.auth.signInWithPassword({ email, password })
export async function signIn(email, password) {
  const answer = await send(`${SUPABASE}/auth/v1/token?grant_type=password`, "POST", { email, password }, {});
  sessionStorage.setItem(TOKEN, answer.access_token);
}

export const call = (method, path, body) =>
  send(`${API}${path}`, method, body, { Authorization: `Bearer ${sessionStorage.getItem(TOKEN)}` });

async function send(url, method, body, headers) {
  const answer = await fetch(url, {
    method,
    headers: { Accept: "application/json", ...(body && { "Content-Type": "application/json" }), ...headers },
    body: body && JSON.stringify(body),
    credentials: "omit", // a browser sends no SameSite=Lax cookie to another site: the token says who it is
  });
  if (answer.status === 401) signOut();
  const content = answer.status === 204 ? null : await answer.json();
  if (!answer.ok) throw new Error(content.detail ?? "That did not work.");
  return content;
}

// What the next page shows once.
export const setNotice = (words) => sessionStorage.setItem("notice", words);
export function takeNotice() {
  const words = sessionStorage.getItem("notice");
  sessionStorage.removeItem("notice");
  return words;
}
