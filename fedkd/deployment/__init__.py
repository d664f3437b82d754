"""Federations of real sites, over Flower's SuperLink.

* `provision`: `fedkd deploy init`: a folder for the server and each site.
* `authority`: certificates and keys.
* `templates`: start scripts and READMEs of that folder.
* `app`: the Flower App: its run config, its two apps.
* `serve`: a run on the server.
* `sites`: the sites as the server sees them; messages to and from them.
* `roster`: which sites the federation has met.
* `introduction`: what a site sends of itself at the first contact.
* `on_site`: what runs at a site.
* `site_state`: what a site keeps on disk.
"""
