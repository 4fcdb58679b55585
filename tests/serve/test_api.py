def test_smoke(served):
    answer = served.detect()
    print(answer.status_code, answer.text[:600], answer.headers)
    print(served.client.get("/health").text, served.client.get("/api/info").text)
    print(served.client.get("/metrics").text[-1500:])
    print(served.lines)
    assert 0
