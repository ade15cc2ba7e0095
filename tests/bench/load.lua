-- What wrk sends, and how it tells what came of it, one line for a program to read:
-- wrk ... URL -- METHOD BODY_BYTES VARIETY
-- VARIETY is how many numbers stand for `{n}` in the path, 0 if there is none in it.

local requests = {}
local variety

function init(arguments)
    wrk.method = arguments[1]
    local bytes = tonumber(arguments[2])
    if bytes > 0 then
        wrk.body = string.rep("x", bytes)
    end
    variety = tonumber(arguments[3])
    local path = wrk.path:gsub("%%7B", "{"):gsub("%%7D", "}")
    for n = 0, math.max(variety, 1) - 1 do
        requests[n] = wrk.format(nil, (path:gsub("{n}", tostring(n))))
    end
end

function request()
    if variety == 0 then
        return requests[0]
    end
    return requests[math.random(0, variety - 1)]
end

function done(summary, latency)
    local errors = summary.errors
    io.write(string.format(
        "result requests=%d bytes=%d micros=%d statuses=%d broken=%d p50=%d p99=%d\n",
        summary.requests, summary.bytes, summary.duration, errors.status,
        errors.connect + errors.read + errors.write + errors.timeout,
        latency:percentile(50), latency:percentile(99)
    ))
end
