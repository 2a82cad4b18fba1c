import io, random, asyncio, json, socket, time
import httpx, pytest, uvicorn
from PIL import Image
from llava_api.errors import BadImage
from llava_api.images.decode import decode, read_header
from tests.api.conftest import *
from tests.api.test_chat import CHAT, text_body, picture_message, RED

async def test_unforeseen(client, engine, app):
    async def boom(*a): raise RuntimeError("secret /path")
    app.state.services.preparer.prepare = boom
    r = await client.post(CHAT, json=text_body(), headers={"x-request-id":"mine"})
    print("UNFORESEEN", r.status_code, r.text, dict(r.headers))
    r2 = await client.get("/v1/models/"); print("SLASH", r2.status_code, r2.text, dict(r2.headers))
    r3 = await client.get("/v1/chat/completions/"); print("SLASH2", r3.status_code, r3.text, dict(r3.headers))
    r3 = await client.head("/v1/models"); print("HEAD", r3.status_code, dict(r3.headers))
    r4 = await client.options(CHAT); print("OPTIONS", r4.status_code, r4.text, dict(r4.headers))

async def test_ids(client, engine):
    big = await client.post(CHAT, content=b" "*400000)
    engine.fail_at = 0
    e = await client.post(CHAT, json=text_body())
    engine.fail_at = None
    s = await client.post(CHAT, json=text_body(stream=True))
    print("IDS", [x.headers.get("x-request-id") for x in (big, e, s)], s.headers.get_list("x-request-id"))
    engine.texts = ()
    print("EMPTY", (await client.post(CHAT, json=text_body())).text, (await client.post(CHAT, json=text_body(stream=True))).text, engine.unfinished)
    engine.texts=("a",)*3; engine.fail_at=2
    x=await client.post(CHAT, json=text_body()); print("MIDWHOLE", x.status_code, x.text, engine.unfinished)
    for b in (text_body(seed=2**70), text_body(max_tokens=True), text_body(temperature=1), text_body(logprobs=True), text_body("\ud800") if False else text_body("x\x00y"), {"model":"tiny","messages":[{"role":"user","content":[]}]}, {"model":"tiny","messages":[{"role":"user","content":None}]}, {"model":"tiny","messages":[{"role":"tool","content":"a"}]}):
        engine.fail_at=None
        x=await client.post(CHAT, json=b); print("B", x.status_code, x.text[:250])

def test_fuzz():
    rnd = random.Random(1)
    noise = Image.effect_noise((60, 40), 80).convert("RGB")
    ex = Image.Exif(); ex[0x0112]=6; ex[0x010e]="hello"*5
    seeds=[]
    for f,o in (("PNG",{"exif":ex}),("JPEG",{"exif":ex}),("WEBP",{"exif":ex}),("GIF",{})):
        b=io.BytesIO(); noise.save(b,f,**o); seeds.append((f,b.getvalue()))
    b=io.BytesIO(); noise.convert("P").save(b,"PNG",transparency=b"\x00\x10"); seeds.append(("PNGP",b.getvalue()))
    bad={}
    for f,s in seeds:
        for _ in range(1500):
            d=bytearray(s)
            for _ in range(rnd.choice((1,1,2,6))):
                d[rnd.randrange(min(len(d), rnd.choice((60,300,99999))))]=rnd.choice((0,255,rnd.randrange(256)))
            d=bytes(d)
            if rnd.random()<.2: d=d[:rnd.randrange(len(d))]
            try:
                h=read_header(d,"p",10**6)
                p=decode(d,"p")
                if p.size!=(h.width,h.height): bad.setdefault((f,"SIZE"),(p.size,h))
            except BadImage: pass
            except Exception as e: bad.setdefault((f,type(e).__name__,str(e)[:60]),0)
    print("FUZZ",bad)

async def test_preparing(app, engine):
    svc = app.state.services
    started = asyncio.Event(); loop = asyncio.get_running_loop()
    orig = svc.preparer.render
    def slow(image):
        loop.call_soon_threadsafe(started.set); time.sleep(1.0); return orig(image)
    svc.preparer.render = slow
    l = socket.socket(); l.bind(("127.0.0.1",0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    t = asyncio.create_task(server.serve(sockets=[l]))
    while not server.started: await asyncio.sleep(.01)
    for stream in (True, False):
        started.clear()
        body = json.dumps({"model":"tiny","stream":stream,"messages":[picture_message("a",RED)]}).encode()
        _, w = await asyncio.open_connection(*l.getsockname())
        w.write(f"POST {CHAT} HTTP/1.1\r\nHost: t\r\nContent-Length: {len(body)}\r\n\r\n".encode()+body)
        await asyncio.wait_for(started.wait(),5); w.close(); await w.wait_closed()
        await asyncio.sleep(1.6)
        print("PREPARING", stream, engine.requests, engine.unfinished)
    server.should_exit=True; await t
