// Where this page finds the service and the project of Supabase.
export const API = "https://api.example.com";
export const SUPABASE = "https://abcdefghijkl.supabase.co";
