import { mount } from 'svelte';
import App from './App.svelte';
import { prefs } from '$lib/state/prefs.svelte';
import './styles/tokens.css';
import './styles/base.css';
import './styles/forms.css';
import './styles/prose.css';

await prefs.setLocale(prefs.locale);
mount(App, { target: document.getElementById('app')! });
